# `dormer-admin`: the administrator's commands with the settings, the secrets and the user of the
# units. Only systemd can read the secrets, so it runs the command, as a unit that lasts as long.
{
  lib,
  pkgs,
  cfg,
}:

let
  properties = {
    User = cfg.user;
    Group = cfg.group;
    StateDirectory = "dormer";
    StateDirectoryMode = "0700";
    WorkingDirectory = "/var/lib/dormer";
    UMask = "0077";
    NoNewPrivileges = "yes";
  };
  lists =
    lib.optional (cfg.environmentFile != null) "EnvironmentFile=${toString cfg.environmentFile}"
    ++ lib.mapAttrsToList (name: file: "LoadCredential=${name}:${toString file}") cfg.credentials;
  flags = map (property: "--property=${property}") (
    lib.mapAttrsToList (name: value: "${name}=${value}") properties ++ lists
  );
  # systemd does not expand `%d` in variables that a caller hands it.
  masterKey = lib.optionalString (
    cfg.credentials ? master-key
  ) ''DORMER_MASTER_KEY_FILE="$CREDENTIALS_DIRECTORY/master-key" '';
  run = ''DORMER_CONFIG=${cfg.settingsFile} ${masterKey}exec ${lib.getExe cfg.package} "$@"'';
in
pkgs.writeShellScriptBin "dormer-admin" ''
  # The administrator's commands with the settings, secrets and user of the server.
  terminal=--pipe
  if [ -t 0 ] && [ -t 1 ]; then terminal=--pty; fi
  exec systemd-run --quiet --wait --collect "$terminal" \
    ${lib.escapeShellArgs flags} \
    -- /bin/sh -c ${lib.escapeShellArg run} dormer "$@"
''
