{ cargoCheck, rustfmt }:
cargoCheck {
  name = "rustfmt";
  command = "cargo fmt --all --check";
  tools = [ rustfmt ];
}
