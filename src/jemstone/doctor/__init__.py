"""The doctor: what happened to a training run, why, and what to change, from the files that it left behind."""

from jemstone.doctor.advice import Advice
from jemstone.doctor.case import Case, open_case
from jemstone.doctor.diagnosis import Diagnosis, Finding, diagnose
from jemstone.doctor.figure import draw

__all__ = ["Advice", "Case", "Diagnosis", "Finding", "diagnose", "draw", "open_case"]
