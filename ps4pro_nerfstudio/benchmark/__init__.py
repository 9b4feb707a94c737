# SPDX-License-Identifier: Apache-2.0
"""Measurements that a user can repeat: `ps4pro bench`, and the summary of a run."""
