# The module system, as far as our module and its tests use it: imports, options, mkIf, priorities.
lib:
let
  inherit (builtins)
    attrNames
    concatMap
    filter
    foldl'
    head
    isAttrs
    isFunction
    length
    mapAttrs
    ;

  marked = kind: value: isAttrs value && value._type or null == kind;
  show = builtins.concatStringsSep ".";
  union = foldl' (seen: set: seen // set) { };
  defaultPriority = 100;

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };

  # A set of definitions whose condition stands around it: the same conditions around each of its values.
  pushDown =
    set:
    if marked "if" set then
      map (mapAttrs (_: mkIf set.condition)) (pushDown set.content)
    else if marked "override" set then
      map (mapAttrs (_: mkOverride set.priority)) (pushDown set.content)
    else
      [ set ];

  # A definition without its marks: none if a condition does not hold, else a priority and a value.
  discharge =
    priority: value:
    if marked "if" value then
      if value.condition then discharge priority value.content else [ ]
    else if marked "override" value then
      discharge value.priority value.content
    else
      [ { inherit priority value; } ];

  nothing._type = "nothing";
  isNothing = marked "nothing";

  # Only the definitions of the strongest priority count.
  mergeDefinitions =
    loc: type: definitions:
    let
      found = concatMap (discharge defaultPriority) definitions;
      strongest = foldl' (least: it: if it.priority < least then it.priority else least) 9999 found;
      live = map (it: it.value) (filter (it: it.priority == strongest) found);
    in
    if found == [ ] then nothing else lib.types.typed type loc live;

  # A default is looked at only where nothing is defined.
  value =
    loc: option: definitions:
    let
      merged = mergeDefinitions loc option.type definitions;
    in
    if !isNothing merged then
      merged
    else if option ? default then
      mergeDefinitions loc option.type [ option.default ]
    else
      throw "The option `${show loc}' was accessed but has no value defined.";

  # Options and definitions, walked together.
  walk =
    loc: declarations: definitions:
    let
      pushed = concatMap pushDown definitions;
      declared = union declarations;
      at = name: concatMap (set: lib.optional (set ? ${name}) set.${name});
      node =
        name:
        let
          here = loc ++ [ name ];
          options = at name declarations;
        in
        if marked "option" (head options) then
          if length options > 1 then
            throw "The option `${show here}' is declared twice."
          else
            {
              config = value here (head options) (at name pushed);
              options = head options // {
                loc = here;
              };
              stray = [ ];
            }
        else
          walk here options (at name pushed);
      nodes = mapAttrs (name: _: node name) declared;
    in
    {
      config = mapAttrs (_: it: it.config) nodes;
      options = mapAttrs (_: it: it.options) nodes;
      stray =
        concatMap (
          set: map (name: loc ++ [ name ]) (filter (name: !declared ? ${name}) (attrNames set))
        ) pushed
        ++ concatMap (it: it.stray) (builtins.attrValues nodes);
    };

  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
    }:
    let
      arguments = specialArgs // {
        inherit lib;
        inherit (result) config options;
      };
      load =
        module:
        if builtins.isPath module then
          load (import module)
        else if isFunction module then
          load (module arguments)
        else
          let
            # Without `options` and `config`, all but the imports is configuration.
            short = !(module ? options || module ? config);
          in
          {
            imports = module.imports or [ ];
            options = module.options or { };
            config = if short then removeAttrs module [ "imports" ] else module.config or { };
          };
      collect = concatMap (
        module:
        let
          loaded = load module;
        in
        collect loaded.imports ++ [ loaded ]
      );
      all = collect modules;
      tree = walk prefix (map (module: module.options) all) (map (module: module.config) all);
      result = {
        inherit (tree) options;
        config =
          if tree.stray == [ ] then
            tree.config
          else
            throw "The option `${show (head tree.stray)}' does not exist.";
      };
    in
    result;
in
{
  inherit
    evalModules
    isNothing
    mergeDefinitions
    mkIf
    pushDown
    ;
  mkDefault = mkOverride 1000;
  mkVMOverride = mkOverride 10;
  mkOption = option: { _type = "option"; } // option;
  mkEnableOption = what: {
    _type = "option";
    type = lib.types.bool;
    default = false;
    example = true;
    description = "Whether to enable ${what}.";
  };
}
