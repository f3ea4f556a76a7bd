"""Payload bytes over Django Storage: any backend in STORAGES, without append or rename."""
