#!/usr/bin/env bash
# Installs what building and testing need on Debian 12: packages, nothing else. Safe to run again;
# quick when everything is there. The Rust toolchain is expected to be there already.
set -euo pipefail

packages=(
  build-essential bc bison flex libelf-dev cpio zstd xz-utils                  # kernel build
  linux-source-6.12                                                          # kernel source
  erofs-utils e2fsprogs                                                      # images, scratch templates
  mmdebstrap                                                                 # root filesystems
  patchelf procps python3                                                    # worker VM, its driver, tests
  python3-venv                                                               # the API's test with a generated client
  nix-bin pyflakes3                                                          # checks of the Nix side
  ca-certificates
)

die() { echo "setup: $*" >&2; exit 1; }

command -v apt-get >/dev/null || die "this needs a Debian system (apt-get); on NixOS use the flake"

missing=()
for package in "${packages[@]}"; do
  case "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)" in
    'install ok installed') ;;
    *) missing+=("$package") ;;
  esac
done

if ((${#missing[@]})); then
  root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "packages are missing (${missing[*]}): run as root, or install sudo"
    root=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  log=$(mktemp)
  install() {
    "${root[@]}" apt-get update -q >"$log" 2>&1 &&
      "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1
  }
  install || { cat "$log" >&2; die "apt-get failed, see above"; }
  rm -f "$log"
fi

command -v cargo >/dev/null || die "cargo is not there: install Rust 1.90 or newer (https://rustup.rs)"
have=$(rustc --version | cut -d' ' -f2)
want=1.90.0
[ "$(printf '%s\n' "$want" "$have" | sort -V | head -n1)" = "$want" ] ||
  die "rustc $have is too old: Rust $want or newer is needed"
