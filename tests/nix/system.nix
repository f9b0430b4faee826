# A machine with the modules of the flake and the stubs of NixOS: what it would get.
#
#   nix-instantiate --eval --strict --json tests/nix/system.nix --arg configuration '{ … }'
{
  # A NixOS module.
  configuration,
  # Which of the flake's modules.
  modules ? [ "default" ],
}:

let
  lib = import ./stubs/lib.nix;
  flake = import ../../flake.nix;
  outputs = flake.outputs {
    self = outputs;
    nixpkgs = {
      inherit lib;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
        system: import ./stubs/pkgs.nix { inherit system; }
      );
    };
  };
  system = lib.evalModules {
    modules = [
      ./stubs/nixos.nix
      configuration
    ]
    ++ map (name: outputs.nixosModules.${name}) modules;
    specialArgs = { inherit pkgs; };
  };
  # As NixOS does: the overlays of the modules make the packages that the modules get.
  pkgs = import ./stubs/pkgs.nix { overlays = [ outputs.overlays.default ]; };
  inherit (system) config;
  failed = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
in
if failed != [ ] then
  throw "Failed assertions: ${lib.concatStringsSep "; " failed}"
else
  {
    inherit (config.systemd) services timers;
    overlays = builtins.length config.nixpkgs.overlays;
    nix = config.nix.settings;
    ports = config.networking.firewall.allowedTCPPorts;
    users = lib.attrNames config.users.users;
    packages = map (package: package.name) config.environment.systemPackages;
    scripts = lib.filter (text: text != null) (
      map (package: package.text or null) config.environment.systemPackages
    );
    settings = config.services.dormer.settings or null;
    check = config.services.dormer.settingsFile.script or null;
  }
