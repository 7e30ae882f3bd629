# What cargo sees: the members that Cargo.toml names, and nothing that would rebuild them without need.
{ lib }:
let
  root = ../.;
  manifest = lib.importTOML (root + "/Cargo.toml");
  files = [
    "Cargo.toml"
    "Cargo.lock"
    "clippy.toml"
    "rustfmt.toml"
  ]
  ++ manifest.workspace.members;
in
{
  inherit (manifest.workspace.package) version;
  lockFile = root + "/Cargo.lock";
  src = lib.fileset.toSource {
    inherit root;
    fileset = lib.fileset.unions (map (name: root + "/${name}") files);
  };
  # Facts of a member, from its own manifest.
  member = folder: (lib.importTOML (root + "/${folder}/Cargo.toml")).package;
}
