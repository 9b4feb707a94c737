# SPDX-License-Identifier: Apache-2.0
"""Views that no camera took: made from training photographs, weighted by how far to trust them."""
