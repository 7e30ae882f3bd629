# A shell to work in: what the packages are built with, and what `make` and the tests need besides.
{
  cargo,
  clippy,
  deadnix,
  e2fsprogs,
  erofs-utils,
  guest-kernel,
  mkShell,
  nixfmt,
  python3,
  qemu,
  rundlet-unwrapped,
  rustfmt,
}:
mkShell {
  inputsFrom = [
    guest-kernel
    rundlet-unwrapped
  ];
  packages = [
    cargo
    clippy
    deadnix
    e2fsprogs
    erofs-utils
    nixfmt
    python3
    qemu
    rustfmt
  ];
  # Programs of the tree are found beside target/release/rundlet; only the store of the tests is somewhere else.
  shellHook = "export RUNDLET_STORE=\${RUNDLET_STORE:-$PWD/target/store}";
}
