{ cargoCheck, clippy }:
cargoCheck {
  name = "clippy";
  command = "cargo clippy --workspace --all-targets --offline -- -D warnings";
  tools = [ clippy ];
}
