"""Roles, process groups and the RPC world: the only package that imports torch.distributed."""
