# Option types. Each has a name, a check of one definition, and a merge of all of them.
lib:
let
  inherit (builtins)
    all
    concatLists
    concatStringsSep
    elem
    head
    isAttrs
    isFunction
    isInt
    isList
    isPath
    isString
    length
    tail
    ;

  show = concatStringsSep ".";
  scalar = name: check: {
    inherit name check;
    merge =
      loc: values:
      if all (value: value == head values) values then
        head values
      else
        throw "The option `${show loc}' has conflicting definition values.";
  };
  number =
    name: low: high:
    scalar name (value: isInt value && value >= low && value <= high);
  text = value: isString value || lib.isDerivation value;

  # The merge of `values`, each of which has to pass.
  typed =
    type: loc: values:
    let
      bad = builtins.filter (value: !type.check value) values;
    in
    if bad != [ ] then
      throw "A definition for option `${show loc}' is not of type `${type.name}': ${builtins.typeOf (head bad)}"
    else
      type.merge loc values;

  types = rec {
    raw = scalar "anything" (_: true);
    bool = scalar "boolean" builtins.isBool;
    str = scalar "string" isString;
    singleLineStr = scalar "single-line string" (
      value: isString value && builtins.match "[^\n]*\n?" value != null
    );
    strMatching =
      pattern:
      scalar "string matching the pattern ${pattern}" (
        value: isString value && builtins.match pattern value != null
      );
    lines = scalar "strings concatenated with newlines" isString // {
      merge = _: concatStringsSep "\n";
    };
    int = scalar "signed integer" isInt;
    ints = {
      between = low: high: number "integer between ${toString low} and ${toString high}" low high;
      positive = number "positive integer" 1 9223372036854775807;
    };
    package = scalar "package" lib.isDerivation;
    path = scalar "absolute path" (
      value: isPath value || (text value && lib.hasPrefix "/" (toString value))
    );
    enum = values: scalar "one of ${builtins.toJSON values}" (value: elem value values);

    nullOr =
      type:
      scalar "null or ${type.name}" (value: value == null || type.check value)
      // {
        merge = loc: values: if all (value: value == null) values then null else typed type loc values;
      };
    either =
      one: other:
      scalar "${one.name} or ${other.name}" (value: one.check value || other.check value)
      // {
        merge = loc: values: (if all one.check values then one else other).merge loc values;
      };
    oneOf = list: builtins.foldl' either (head list) (tail list);

    listOf =
      type:
      scalar "list of ${type.name}" isList
      // {
        nested = type;
        merge = loc: values: map (value: typed type loc [ value ]) (concatLists values);
      };
    attrsOf =
      type:
      scalar "attribute set of ${type.name}" isAttrs
      // {
        nested = type;
        merge =
          loc: values:
          let
            pushed = builtins.concatMap lib.pushDown values;
          in
          lib.filterAttrs (_: value: !lib.isNothing value) (
            builtins.mapAttrs (
              name: _:
              lib.mergeDefinitions (loc ++ [ name ]) type (
                builtins.concatMap (value: lib.optional (value ? ${name}) value.${name}) pushed
              )
            ) (builtins.foldl' (seen: value: seen // value) { } pushed)
          );
      };
    # Definitions of no known shape: sets side by side, lists one after the other.
    anything = scalar "anything" (_: true) // {
      merge =
        loc: values:
        if length values > 1 && all isList values then
          concatLists values
        else if all (value: isAttrs value && !lib.isDerivation value) values then
          (attrsOf anything).merge loc values
        else
          raw.merge loc values;
    };
    submodule =
      module:
      scalar "submodule" (value: isAttrs value || isFunction value)
      // {
        inherit module;
        merge =
          loc: values:
          (lib.evalModules {
            prefix = loc;
            specialArgs.name = builtins.elemAt loc (length loc - 1);
            modules = [ module ] ++ map (value: if isAttrs value then { config = value; } else value) values;
          }).config;
      };
    deferredModule = scalar "module" (value: isAttrs value || isFunction value || isPath value) // {
      merge = _: values: { imports = values; };
    };
  };
in
types // { inherit typed; }
