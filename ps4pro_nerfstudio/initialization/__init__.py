# SPDX-License-Identifier: Apache-2.0
"""Where Gaussians start: points from the train views of a capture that ships none.

Nothing heavy is imported here; take what you need from the modules.
"""
