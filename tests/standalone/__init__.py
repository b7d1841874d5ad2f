"""Containers on a VM without Kubernetes."""
