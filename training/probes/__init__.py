"""Probes: small networks that read a maze out of a frozen memory."""
