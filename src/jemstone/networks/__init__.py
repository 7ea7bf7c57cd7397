"""Networks that return logits, and the way from a name or a checkpoint of the JEM release to one of them."""

from jemstone.networks.adapters import Adapted
from jemstone.networks.factory import NETWORKS, build_network
from jemstone.networks.legacy import load_jem_checkpoint
from jemstone.networks.resnet9 import ResNet9
from jemstone.networks.small import MLP, ConvNet
from jemstone.networks.wide_resnet import WideResNet

__all__ = ["MLP", "NETWORKS", "Adapted", "ConvNet", "ResNet9", "WideResNet", "build_network", "load_jem_checkpoint"]
