# SPDX-License-Identifier: Apache-2.0
"""Scenes x methods x views x seeds through ns-train and ns-eval's code: `ps4pro bench scenes`."""
