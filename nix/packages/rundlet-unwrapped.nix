# The command line alone; ./rundlet.nix brings it together with what it runs.
{ buildCrate }:
buildCrate { folder = "node"; }
