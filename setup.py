"""Packages of the wheel: the three import packages, configs and experiments inside one of them."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["encoders*", "projectors*", "multimodal*"]),
        "multimodal._configs",
        "multimodal._configs.experiment",
    ]
)
