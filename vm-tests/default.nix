# Every claim of this folder as a NixOS VM test: the same file that `vm-tests/run` runs, by the same names and headers.
# A claim whose head says `# skip: REASON` or `# nixos: REASON` is not among them.
{
  lib,
  rundletPackages,
  testers,
}:
let
  # As driver/claims.py: words joined by dashes, which no module's name has.
  isClaim =
    file: kind: kind == "regular" && builtins.match "[a-z0-9]+(-[a-z0-9]+)+\\.py" file != null;

  header =
    text: field:
    let
      matches = map (builtins.match "# *${field}: *(.*[^ ]) *") (headLines text);
    in
    lib.findFirst (match: match != null) null matches;

  headLines =
    text:
    let
      beforeCode = builtins.match "((#[^\n]*\n)*).*" text;
    in
    lib.splitString "\n" (lib.head beforeCode);

  claim =
    file:
    let
      text = builtins.readFile (./. + "/${file}");
      field = header text;
      timeout = field "timeout";
    in
    {
      name = lib.removeSuffix ".py" file;
      leftOut = field "skip" != null || field "nixos" != null;
      test = testers.runNixOSTest {
        name = lib.removeSuffix ".py" file;
        # The claim's own limit, and the boot, the images and slow emulation around it.
        globalTimeout = 900 + lib.toIntBase10 (if timeout == null then "600" else lib.head timeout);
        # Claims are checked against the portable driver; the linter runs here as well.
        skipTypeCheck = true;
        nodes.machine = import ./node.nix rundletPackages;
        testScript = "machine.wait_for_unit(\"rundlet-store.service\")\n" + text;
      };
    };

  claims = map claim (lib.attrNames (lib.filterAttrs isClaim (builtins.readDir ./.)));
in
lib.listToAttrs (map (it: lib.nameValuePair it.name it.test) (lib.filter (it: !it.leftOut) claims))
