# The functions of nixpkgs' lib that our Nix uses, with the same meaning.
let
  inherit (builtins)
    attrNames
    elem
    filter
    head
    isAttrs
    isString
    length
    listToAttrs
    stringLength
    substring
    ;

  lib = builtins // rec {
    # Lists.
    optional = condition: item: if condition then [ item ] else [ ];
    optionals = condition: items: if condition then items else [ ];
    toList = item: if builtins.isList item then item else [ item ];
    unique = builtins.foldl' (seen: item: if elem item seen then seen else seen ++ [ item ]) [ ];
    intersectLists = left: filter (item: elem item left);
    count = wanted: items: length (filter wanted items);
    findFirst =
      wanted: default: items:
      let
        found = filter wanted items;
      in
      if found == [ ] then default else head found;

    take =
      count: items:
      builtins.genList (builtins.elemAt items) (if count < length items then count else length items);

    # Attribute sets.
    optionalAttrs = condition: set: if condition then set else { };
    mapAttrsRecursive =
      f:
      let
        inner =
          path:
          builtins.mapAttrs (
            name: value: if isAttrs value then inner (path ++ [ name ]) value else f (path ++ [ name ]) value
          );
      in
      inner [ ];
    nameValuePair = name: value: { inherit name value; };
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
    genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
    genAttrs' = items: f: listToAttrs (map f items);
    filterAttrs =
      wanted: set: removeAttrs set (filter (name: !wanted name set.${name}) (attrNames set));
    isDerivation = value: isAttrs value && value.type or null == "derivation";

    # Strings.
    concatStrings = builtins.concatStringsSep "";
    concatMapStrings = f: items: concatStrings (map f items);
    concatMapStringsSep =
      separator: f: items:
      builtins.concatStringsSep separator (map f items);
    optionalString = condition: text: if condition then text else "";
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      let
        start = stringLength text - stringLength suffix;
      in
      start >= 0 && substring start (-1) text == suffix;
    hasInfix = infix: text: length (splitString infix text) > 1;
    removeSuffix =
      suffix: text:
      if hasSuffix suffix text then substring 0 (stringLength text - stringLength suffix) text else text;
    escapeRegex =
      builtins.replaceStrings
        [
          "\\"
          "."
          "+"
          "*"
          "?"
          "("
          ")"
          "["
          "]"
          "{"
          "}"
          "^"
          "$"
          "|"
        ]
        [
          "\\\\"
          "\\."
          "\\+"
          "\\*"
          "\\?"
          "\\("
          "\\)"
          "\\["
          "\\]"
          "\\{"
          "\\}"
          "\\^"
          "\\$"
          "\\|"
        ];
    splitString = separator: text: filter isString (builtins.split (escapeRegex separator) text);
    toIntBase10 =
      text:
      if builtins.match "[0-9]+" text != null then
        builtins.fromJSON text
      else
        throw "toIntBase10: ${text} is no number";

    # Files and packages.
    importTOML = path: builtins.fromTOML (builtins.readFile path);
    fileset = {
      unions = map (
        path:
        if builtins.pathExists path then path else throw "fileset.unions: ${toString path} is not there"
      );
      toSource =
        { root, fileset }:
        builtins.path {
          name = "source";
          path = root;
          filter =
            path: _:
            builtins.any (
              wanted: path == wanted || hasPrefix "${wanted}/" path || hasPrefix "${path}/" wanted
            ) (map toString fileset);
        };
    };
    sources.sourceFilesBySuffices =
      root: suffixes:
      builtins.path {
        name = "source";
        path = root;
        filter = path: kind: kind == "directory" || builtins.any (suffix: hasSuffix suffix path) suffixes;
      };
    getExe =
      package:
      "${package}/bin/${
        package.meta.mainProgram or (throw "getExe: ${package.name} has no meta.mainProgram")
      }";
    getExe' = package: program: "${package}/bin/${program}";
    makeBinPath = concatMapStringsSep ":" (package: "${package}/bin");
    licenses = genAttrs [ "asl20" "gpl2Only" ] (name: name);
    # What nixpkgs adds to its lib in a flake.
    nixosSystem =
      { system, modules }:
      import ./nixos.nix {
        inherit lib;
        pkgs = import ./packages.nix lib;
        module.imports = builtins.seq system modules;
      };
    assertMsg = condition: message: if condition then true else throw message;
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };

    # A set of packages that take their arguments from each other, then from the set around it.
    makeScope =
      newScope: f:
      let
        self = f self // {
          newScope = extra: newScope (self // extra);
          callPackage = self.newScope { };
          packages = f;
        };
      in
      self;

    inherit (import ./modules.nix lib)
      evalModules
      isNothing
      mergeDefinitions
      mkDefault
      mkEnableOption
      mkIf
      mkOption
      mkVMOverride
      pushDown
      ;
    types = import ./types.nix lib;
  };
in
lib
