# How long systemd waits for a process that stops: these times of the settings together, and a
# margin. systemd adds up spans of time, and knows most of Dormer's words for their units.
{ lib }:
times:
lib.concatMapStringsSep " " (
  time: builtins.replaceStrings [ "millis" "secs" "mins" "hrs" ] [ "ms" "s" "min" "h" ] (toString time)
) (times ++ [ "30s" ])
