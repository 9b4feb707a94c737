# SPDX-License-Identifier: Apache-2.0
"""How the learned interpolator is trained and measured: data engine, trainer, evaluation.

Nothing of this is needed to use the network.
"""
