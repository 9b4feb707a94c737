# SPDX-License-Identifier: Apache-2.0
"""PS4PRO for nerfstudio: pseudo views for sparse and moving captures.

Importing this package is cheap; the parts are imported where they are used.
"""

__version__ = "0.1.0"
