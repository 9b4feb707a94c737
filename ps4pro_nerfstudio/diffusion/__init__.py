# SPDX-License-Identifier: Apache-2.0
"""Frozen image priors: two denoisers that judge a render, and a depth network.

Nothing heavy is imported here; take what you need from the modules.
"""
