# What nix/ uses of nixpkgs' lib, written from its manual: a module system with options, types,
# mkIf, mkMerge and priorities, and some functions. As the real one, it refuses options that nobody
# declared, values of another type, and two values for one option.
#
# It is small, so it is no proof that the modules work on NixOS; but a misspelt option, a missing
# condition, or a bad default shows.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    genList
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isString
    length
    listToAttrs
    mapAttrs
    match
    pathExists
    stringLength
    substring
    tail
    ;

  typeOf = value: if isAttrs value then value._type or null else null;
  path = location: concatStringsSep "." location;

  # Properties ----------------------------------------------------------------------------------

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };

  # The plain values in a definition, with their priorities.
  discharge =
    definition:
    if typeOf definition == "if" then
      if definition.condition then discharge definition.content else [ ]
    else if typeOf definition == "merge" then
      concatMap discharge definition.contents
    else if typeOf definition == "override" then
      map (one: one // { inherit (definition) priority; }) (discharge definition.content)
    else
      [
        {
          priority = 100;
          value = definition;
        }
      ];

  # Sets of definitions: conditions move to the leaves, so that no condition is needed to know which
  # names there are.
  pushDown =
    definition:
    if typeOf definition == "if" then
      map (mapAttrs (_: mkIf definition.condition)) (pushDown definition.content)
    else if typeOf definition == "merge" then
      concatMap pushDown definition.contents
    else if typeOf definition == "override" then
      map (mapAttrs (_: mkOverride definition.priority)) (pushDown definition.content)
    else
      [ definition ];

  mergeDefinitions =
    location: type: definitions:
    let
      values = concatMap discharge definitions;
      best = foldl' (least: one: if one.priority < least then one.priority else least) 9999 values;
      chosen = map (one: one.value) (filter (one: one.priority == best) values);
      bad = filter (value: !type.check value) chosen;
    in
    if values == [ ] && type ? empty then
      type.empty
    else if values == [ ] then
      throw "The option `${path location}' was accessed but has no value defined. Try setting the option."
    else if bad != [ ] then
      throw "A definition for option `${path location}' is not of type `${type.name}'."
    else
      type.merge location chosen;

  one =
    location: values:
    if all (value: value == head values) values then
      head values
    else
      throw "The option `${path location}' has conflicting definition values.";

  # Types ---------------------------------------------------------------------------------------

  mkType = name: check: {
    inherit name check;
    merge = one;
  };
  types = rec {
    bool = mkType "boolean" isBool;
    int = mkType "signed integer" isInt;
    str = mkType "string" isString;
    path = mkType "absolute path" (
      value: builtins.isPath value || (isString value && hasPrefix "/" value) || isDerivation value
    );
    package = mkType "package" isDerivation;
    anything = mkType "anything" (_: true) // {
      merge =
        location: values:
        if all isAttrs values then
          foldl' (set: value: set // value) { } values
        else if all isList values then
          concatLists values
        else
          one location values;
    };
    lines = str // {
      merge = _: concatStringsSep "\n";
    };
    strMatching =
      pattern:
      mkType "string matching the pattern ${pattern}" (value: isString value && match pattern value != null);
    enum = values: mkType "one of ${builtins.toJSON values}" (value: elem value values);
    nullOr =
      type:
      mkType "null or ${type.name}" (value: value == null || type.check value)
      // {
        merge =
          location: values:
          if all (value: value == null) values then null else mergeDefinitions location type (filter (value: value != null) values);
      };
    listOf =
      type:
      mkType "list of ${type.name}" isList
      // {
        merge =
          location: values:
          map (value: mergeDefinitions (location ++ [ "*" ]) type [ value ]) (concatLists values);
        empty = [ ];
      };
    nonEmptyListOf =
      type:
      removeAttrs (listOf type) [ "empty" ]
      // {
        name = "non-empty list of ${type.name}";
        check = value: isList value && value != [ ];
      };
    attrsOf =
      type:
      mkType "attribute set of ${type.name}" isAttrs
      // {
        merge =
          location: values:
          let
            sets = concatMap pushDown values;
            defined = name: concatMap (set: if set ? ${name} then [ set.${name} ] else [ ]) sets;
            names = unique (concatMap attrNames sets);
            some = filter (name: concatMap discharge (defined name) != [ ]) names;
          in
          genAttrs some (name: mergeDefinitions (location ++ [ name ]) type (defined name));
        empty = { };
      };
    submodule =
      module:
      mkType "submodule" (value: isAttrs value || isFunction value)
      // {
        merge =
          location: values: (evalAt location ([ module ] ++ map (value: { config = value; }) values) { }).config;
        empty = (evalAt [ ] [ module ] { }).config;
      };
    tomlValue =
      mkType "TOML value" (
        value: isBool value || isInt value || isFloat value || isString value || isAttrs value || isList value
      )
      // {
        merge =
          location: values:
          if all isAttrs values then
            (attrsOf tomlValue).merge location values
          else if all isList values then
            (listOf tomlValue).merge location values
          else
            one location values;
      };
  };

  # Modules -------------------------------------------------------------------------------------

  mkOption =
    {
      type,
      default ? null,
      defaultText ? null,
      example ? null,
      description,
    }@arguments:
    arguments // { _type = "option"; };

  # All modules once, those that they import too. A path is a module's identity.
  collect =
    arguments: modules:
    let
      unfold =
        module:
        let
          loaded = if builtins.isPath module then import module else module;
          content = if isFunction loaded then loaded arguments else loaded;
        in
        [
          {
            key = if builtins.isPath module then toString module else null;
            options = content.options or { };
            config =
              if content ? options || content ? config then
                content.config or { }
              else
                removeAttrs content [
                  "imports"
                  "freeformType"
                ];
            freeformType = content.freeformType or null;
          }
        ]
        ++ concatMap unfold (content.imports or [ ]);
      add = seen: one: if one.key != null && any (other: other.key == one.key) seen then seen else seen ++ [ one ];
    in
    foldl' add [ ] (concatMap unfold modules);

  mergeOptions =
    location: left: right:
    left
    // mapAttrs (
      name: option:
      if !(left ? ${name}) then
        option
      else if typeOf left.${name} == "option" || typeOf option == "option" then
        throw "The option `${path (location ++ [ name ])}' is already declared."
      else
        mergeOptions (location ++ [ name ]) left.${name} option
    ) right;

  evalAt =
    location: modules: specialArguments:
    let
      arguments = specialArguments // {
        inherit lib;
        config = tree;
      };
      collected = collect arguments modules;
      options = foldl' (mergeOptions location) { } (map (module: module.options) collected);
      freeform = foldl' (type: module: if module.freeformType != null then module.freeformType else type) null collected;
      definitions = map (module: module.config) collected;

      evalTree =
        location: options: definitions:
        let
          sets = concatMap pushDown definitions;
          defined = name: concatMap (set: if set ? ${name} then [ set.${name} ] else [ ]) sets;
          default = option: if option ? default then [ (mkOverride 1500 option.default) ] else [ ];
        in
        mapAttrs (
          name: option:
          if typeOf option == "option" then
            mergeDefinitions (location ++ [ name ]) option.type (default option ++ defined name)
          else
            evalTree (location ++ [ name ]) option (defined name)
        ) options;

      # Definitions that no option takes. An error, unless a condition leaves them out.
      unknown =
        location: options: definitions:
        let
          sets = concatMap pushDown definitions;
          isSet = name: any (set: set ? ${name} && discharge set.${name} != [ ]) sets;
          defined = name: concatMap (set: if set ? ${name} then [ set.${name} ] else [ ]) sets;
        in
        concatMap (
          name:
          if !(options ? ${name}) then
            if isSet name then [ (location ++ [ name ]) ] else [ ]
          else if typeOf options.${name} == "option" then
            [ ]
          else
            unknown (location ++ [ name ]) options.${name} (defined name)
        ) (unique (concatMap attrNames sets));

      isFree = name: !(options ? ${name});
      free =
        if freeform == null then
          { }
        else
          freeform.merge location (
            map (filterAttrs (name: _: isFree name)) (concatMap pushDown definitions)
          );
      tree = free // evalTree location options definitions;
      strangers = if freeform == null then unknown location options definitions else [ ];
    in
    {
      config =
        if strangers == [ ] then tree else throw "The option `${path (head strangers)}' does not exist.";
      inherit options;
    };

  # Functions -----------------------------------------------------------------------------------

  isDerivation = value: typeOf value == null && isAttrs value && value.type or null == "derivation";
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  genAttrs =
    names: function:
    listToAttrs (
      map (name: {
        inherit name;
        value = function name;
      }) names
    );
  unique = foldl' (list: value: if elem value list then list else list ++ [ value ]) [ ];
  filterAttrs =
    keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
  escapeShellArg =
    argument:
    let
      text = toString argument;
    in
    if match "[A-Za-z0-9,._+:@%/-]+" text != null then
      text
    else
      "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'";

  lib = {
    inherit
      any
      all
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      escapeShellArg
      filter
      filterAttrs
      genAttrs
      genList
      hasPrefix
      head
      isDerivation
      length
      mapAttrs
      mkIf
      mkMerge
      mkOption
      mkOverride
      tail
      types
      unique
      ;
    inherit pathExists;
    fix = function: let result = function result; in result;
    concatStrings = concatStringsSep "";
    concatMapStringsSep = separator: function: list: concatStringsSep separator (map function list);
    escapeShellArgs = list: concatStringsSep " " (map escapeShellArg list);
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    hasAttrByPath =
      names: set: names == [ ] || (isAttrs set && set ? ${head names} && lib.hasAttrByPath (tail names) set.${head names});
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    licenses.asl20 = {
      spdxId = "Apache-2.0";
    };
    literalExpression = text: text;
    literalMD = text: text;
    mapAttrsToList = function: set: map (name: function name set.${name}) (attrNames set);
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkEnableOption =
      what:
      mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkPackageOption =
      pkgs: name: { }:
      mkOption {
        type = types.package;
        default = pkgs.${name};
        description = "The package to use.";
      };
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    platforms.linux = [
      "aarch64-linux"
      "x86_64-linux"
    ];
    toInt = builtins.fromJSON;
    fileset = {
      unions =
        paths:
        let
          missing = filter (one: !pathExists one) paths;
        in
        if missing == [ ] then paths else throw "lib.fileset: ${toString missing} does not exist";
      toSource = { root, fileset }: map toString fileset;
    };
    evalModules =
      {
        modules,
        specialArgs ? { },
      }:
      evalAt [ ] modules specialArgs;
  };
in
lib
