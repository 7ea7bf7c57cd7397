"""Shapes are types, and the tests execute them: every annotated function of jemstone is checked as it runs."""

from jaxtyping import install_import_hook

install_import_hook("jemstone", "typecheck.checked")
