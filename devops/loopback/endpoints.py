"""Managed online endpoints of Azure Machine Learning by Resource Manager (REST).

api-version: 2024-10-01, for all of it (codes, onlineEndpoints, deployments).
"""
