# SPDX-License-Identifier: Apache-2.0
"""`python -m ps4pro_nerfstudio` is `ps4pro`, for launchers that start modules."""

from ps4pro_nerfstudio.cli import entrypoint

if __name__ == "__main__":
    entrypoint()
