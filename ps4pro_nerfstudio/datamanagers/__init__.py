# SPDX-License-Identifier: Apache-2.0
"""What the methods train on: real views, unaltered, and pseudo views beside them."""
