# The options of NixOS that the modules set, as strict as the real ones where a mistake is likely.
{ lib, pkgs, ... }:

let
  inherit (lib) types;
  option =
    type: default:
    lib.mkOption {
      inherit type default;
      description = "NixOS has it.";
    };
  strings = types.listOf types.str;
  unit = {
    description = option types.str "";
    wantedBy = option strings [ ];
    wants = option strings [ ];
    before = option strings [ ];
    after = option strings [ ];
  };
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = option strings [ ];
    environment.systemPackages = option (types.listOf types.package) [ ];
    networking.firewall.allowedTCPPorts = option (types.listOf types.int) [ ];
    nix.settings = option (types.attrsOf types.anything) { };
    nixpkgs.overlays = option (types.listOf types.anything) [ ];
    users.groups = option (types.attrsOf types.anything) { };
    users.users = option (types.attrsOf (
      types.submodule {
        options = {
          isSystemUser = option types.bool false;
          group = option types.str "";
          home = option types.str "/var/empty";
        };
      }
    )) { };
    systemd.services = option (types.attrsOf (
      types.submodule {
        options = unit // {
          environment = option (types.attrsOf types.str) { };
          script = option types.lines "";
          serviceConfig = option (types.attrsOf types.anything) { };
        };
      }
    )) { };
    systemd.timers = option (types.attrsOf (
      types.submodule {
        options = unit // {
          timerConfig = option (types.attrsOf types.anything) { };
        };
      }
    )) { };
  };
}
