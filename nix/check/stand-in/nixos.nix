# The part of NixOS that our module writes to, and what systemd and the kernel would be given because of it.
{
  lib,
  pkgs,
  module,
}:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  strings = option (types.listOf types.str) [ ];
  text = option types.lines "";
  loose = option types.anything { };

  service = types.submodule {
    options = {
      description = option types.singleLineStr "";
      wantedBy = strings;
      before = strings;
      after = strings;
      requires = strings;
      wants = strings;
      path = option (types.listOf types.package) [ ];
      preStart = text;
      restartIfChanged = option types.bool true;
      restartTriggers = option (types.listOf types.package) [ ];
      unitConfig = option (types.attrsOf value) { };
      serviceConfig = option (types.attrsOf value) { };
    };
  };
  socket = types.submodule {
    options = {
      description = option types.singleLineStr "";
      wantedBy = strings;
      socketConfig = option (types.attrsOf value) { };
    };
  };
  slice = types.submodule {
    options = {
      description = option types.singleLineStr "";
      sliceConfig = option (types.attrsOf value) { };
    };
  };
  user = types.submodule {
    options = {
      uid = option (types.nullOr types.int) null;
      group = option types.str "";
      initialHashedPassword = option (types.nullOr types.str) null;
      isSystemUser = option types.bool false;
      isNormalUser = option types.bool false;
    };
  };
  atom = types.oneOf [
    types.bool
    types.int
    types.str
  ];
  value = types.either atom (types.listOf atom);

  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = strings;
    boot = {
      extraModprobeConfig = text;
      kernel.sysctl = option (types.attrsOf (types.nullOr atom)) { };
      kernelParams = strings;
      loader.grub.devices = strings;
    };
    environment = {
      systemPackages = option (types.listOf types.package) [ ];
      variables = option (types.attrsOf types.str) { };
    };
    fileSystems = option (types.attrsOf types.anything) { };
    networking.hostName = option types.str "";
    services.openssh = loose;
    services.udev.extraRules = text;
    system.stateVersion = option types.str "26.05";
    systemd = {
      services = option (types.attrsOf service) { };
      slices = option (types.attrsOf slice) { };
      sockets = option (types.attrsOf socket) { };
      tmpfiles.rules = strings;
    };
    users.users = option (types.attrsOf user) { };
    users.groups = option (types.attrsOf (types.submodule { options.members = strings; })) { };
    virtualisation = loose;
  };

  evaluated = lib.evalModules {
    modules = [
      { inherit options; }
      module
    ];
    specialArgs = { inherit pkgs; };
  };
  inherit (evaluated) config;

  show =
    value:
    if value == true then
      "true"
    else if value == false then
      "false"
    else
      toString value;
  line = key: value: lib.concatMapStrings (item: "${key}=${show item}\n") (lib.toList value);
  joined = key: items: lib.optionalString (items != [ ]) "${key}=${toString items}\n";
  section = settings: lib.concatStrings (lib.mapAttrsToList line settings);

  unit = service: ''
    [Unit]
    ${joined "After" service.after}${joined "Before" service.before}Description=${service.description}
    ${joined "Requires" service.requires}${joined "Wants" service.wants}${
      lib.optionalString (!service.restartIfChanged) "X-RestartIfChanged=false\n"
    }${section service.unitConfig}
    [Service]
    ${section service.serviceConfig}'';
  other = head: settings: unit: ''
    [Unit]
    Description=${unit.description}

    [${head}]
    ${section settings}'';
  wanted =
    suffix: units:
    lib.concatStrings (
      lib.mapAttrsToList (
        name: unit: lib.concatMapStrings (target: "${target}: ${name}.${suffix}\n") unit.wantedBy
      ) units
    );

  files = lib.filterAttrs (_: text: text != "") (
    lib.mapAttrs' (name: service: {
      name = "systemd/system/${name}.service";
      value = unit service;
    }) config.systemd.services
    // lib.mapAttrs' (name: unit: {
      name = "systemd/system/${name}.socket";
      value = other "Socket" unit.socketConfig unit;
    }) config.systemd.sockets
    // lib.mapAttrs' (name: unit: {
      name = "systemd/system/${name}.slice";
      value = other "Slice" unit.sliceConfig unit;
    }) config.systemd.slices
    // {
      "tmpfiles.d/rundlet.conf" = lib.concatMapStrings (rule: "${rule}\n") config.systemd.tmpfiles.rules;
      "udev/rules.d/99-local.rules" = config.services.udev.extraRules;
      "modprobe.d/nixos.conf" = config.boot.extraModprobeConfig;
      "kernel-parameters" = lib.concatMapStrings (word: "${word}\n") config.boot.kernelParams;
      "sysctl.d/60-nixos.conf" = section config.boot.kernel.sysctl;
      "group-members" = lib.concatStrings (
        lib.mapAttrsToList (name: group: "${name}: ${toString group.members}\n") config.users.groups
      );
      "wanted-by" = wanted "service" config.systemd.services + wanted "socket" config.systemd.sockets;
      "system-packages" = lib.concatMapStrings (
        package: "${package.name}\n"
      ) config.environment.systemPackages;
    }
    # Files that a unit was started for again when they change.
    // lib.listToAttrs (
      lib.concatMap (service: map (file: lib.nameValuePair file.name file.text) service.restartTriggers) (
        lib.attrValues config.systemd.services
      )
    )
  );

  failed = map (it: it.message) (lib.filter (it: !it.assertion) config.assertions);
in
{
  inherit (evaluated) options;
  inherit config failed;
  inherit (config) warnings;
  rendered =
    if failed != [ ] then
      throw "Failed assertions:\n${lib.concatMapStrings (message: "- ${message}\n") failed}"
    else
      {
        inherit files;
        shell = lib.mapAttrs (_: service: service.preStart) config.systemd.services;
      };
}
