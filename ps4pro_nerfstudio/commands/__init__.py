# SPDX-License-Identifier: Apache-2.0
"""What the suite finds in a capture, written to files that other tools read."""
