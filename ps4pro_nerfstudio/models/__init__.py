# SPDX-License-Identifier: Apache-2.0
"""One module per method: what it adds to the nerfstudio model that it extends."""
