# SPDX-License-Identifier: Apache-2.0
"""Reading of captures: what nerfstudio's parsers do, with checks that name the file to repair."""
