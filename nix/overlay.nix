# All of ours in one scope, `rundletPackages`, so that nothing of nixpkgs changes its meaning.
final: _: {
  rundletPackages = final.lib.makeScope final.newScope (import ./scope.nix final.lib);
  inherit (final.rundletPackages) rundlet;
}
