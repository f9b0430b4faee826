# A nixpkgs of few packages. Nothing in it can be built; what a builder would get can be looked at.
{
  system ? "x86_64-linux",
  overlays ? [ ],
}:

let
  lib = import ./lib.nix;
  fake =
    name: attributes:
    derivation {
      inherit name system;
      builder = "/bin/sh";
      preferLocalBuild = true;
    }
    // { inherit name; }
    // attributes;
  base = final: {
    inherit lib system;
    stdenv.buildPlatform.canExecute = _other: true;
    stdenv.hostPlatform = { inherit system; };
    callPackage =
      path: overrides:
      let
        function = import path;
      in
      function (builtins.intersectAttrs (builtins.functionArgs function) final // overrides);
    rustPlatform.buildRustPackage =
      # The arguments that nixpkgs' function has and that are used here: another one is a mistake.
      {
        pname,
        version,
        src,
        cargoLock,
        buildAndTestSubdir ? null,
        nativeBuildInputs ? [ ],
        postInstall ? "",
        doCheck ? true,
        meta,
      }@arguments:
      assert builtins.pathExists cargoLock.lockFile;
      fake "${pname}-${version}" (arguments // { inherit meta; });
    installShellFiles = fake "install-shell-files" { };
    formats.toml = { }: {
      type = lib.types.tomlValue;
      generate = name: value: fake name { text = builtins.toJSON value; };
    };
    writeShellScript = name: text: fake name { inherit text; };
    writeShellScriptBin = name: text: fake name { inherit text; };
    runCommand = name: _environment: script: fake name { inherit script; };
  };
  apply = pkgs: overlay: final: pkgs final // overlay final (pkgs final);
  package = builtins.foldl' apply base overlays;
in
lib.fix package
