# SPDX-License-Identifier: Apache-2.0
"""Training around a model: trainer, optimizers, schedulers, checkpoint compatibility."""
