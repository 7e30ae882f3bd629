# `make demo` for a machine with Nix and a KVM that runs guests natively.
{
  guest-image-python,
  python3,
  rundlet,
  writeShellApplication,
}:
writeShellApplication {
  name = "rundlet-demo";
  runtimeInputs = [
    python3
    rundlet
  ];
  text = ''
    kvm=$(rundlet doctor --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["kvm"])') || true
    if [ "$kvm" != native ]; then
      rundlet doctor || true
      echo "demo: KVM here is ''${kvm:-unknown}, not native; in a virtual machine that QEMU emulates, slow, and real:" >&2
      echo "  nix build --print-build-logs .#checks.x86_64-linux.boots-and-runs-a-command" >&2
      exit 1
    fi
    store=$(mktemp -d)
    trap 'rm -rf "$store"' EXIT
    export RUNDLET_STORE=$store
    rundlet image import ${guest-image-python.tar} python
    python3 ${../../vm-tests/tools/demo-sandbox} python
  '';
}
