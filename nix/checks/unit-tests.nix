# The build sandbox has no /dev/kvm: tests that need it say so and skip; the claims in vm-tests/ are where KVM is.
{
  cargoCheck,
  e2fsprogs,
  erofs-utils,
  procps,
  util-linux,
}:
cargoCheck {
  name = "unit-tests";
  command = "cargo test --workspace --offline";
  tools = [
    e2fsprogs
    erofs-utils
    procps
    util-linux
  ];
}
