#!/bin/sh
# Installs gantry-agent on this host from the package that this script lies in: program, user, configuration, service.
# It may be run again at any time: to upgrade, or to mend what is missing. What you wrote into agent.yaml stays.
set -eu

NODE_FLOOR='20.19'
UNIT=gantry-agent.service

usage() {
  cat <<'END'
usage: install-agent.sh [options]

  --dry-run        say what would be done, and do nothing
  --listen WHERE   who may reach the agent: `local` (this machine only), `network`, or an address of this machine with
                   or without a port; asked for in a terminal, else local. It is for the first agent.yaml only
  --no-gpu         go on where nvidia-smi shows no GPU
  --node FILE      the node to run it with; default: the first one found outside home directories
  --prefix DIR     where the program goes (default /usr/local)
  --root DIR       install into another root directory, an image for example; nothing is started then
  --yes            ask nothing
  --uninstall      stop it and remove the program and the service; configuration, tokens, results, weights and the user
                   stay
  --purge          with --uninstall: those, too
  -h, --help       this text
END
}

main() {
  IS_DRY='' LISTEN='' NO_GPU='' NODE='' PREFIX=/usr/local ROOT='' YES='' UNINSTALL='' PURGE=''
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) IS_DRY=1 ;;
      --no-gpu) NO_GPU=1 ;;
      --yes) YES=1 ;;
      --uninstall) UNINSTALL=1 ;;
      --purge) PURGE=1 ;;
      -h | --help) usage && exit 0 ;;
      --listen | --node | --prefix | --root)
        [ $# -ge 2 ] || die 2 "$1 needs a value. See --help."
        case $1 in
          --listen) LISTEN=$2 ;;
          --node) NODE=$2 ;;
          --prefix) PREFIX=$(absolute "$2") ;;
          --root) ROOT=$(absolute "$2") ;;
        esac
        shift
        ;;
      *) die 2 "unknown option $1. See --help." ;;
    esac
    shift
  done
  [ "$ROOT" != / ] || ROOT=''
  [ -z "$PURGE" ] || [ -n "$UNINSTALL" ] || die 2 '--purge goes with --uninstall.'
  [ "$(uname -s)" = Linux ] || die 69 'the agent is installed as a systemd service, which only Linux has.'
  PACKAGE=$(absolute "$(dirname "$0")/..")
  LIB=$PREFIX/lib/gantry
  PROGRAM=$PREFIX/bin/gantry-agent
  CONFIG=/etc/gantry/agent.yaml
  UNIT_FILE=/etc/systemd/system/$UNIT
  SYSUSERS=/etc/sysusers.d/gantry.conf
  if [ -z "$IS_DRY$ROOT" ] && [ "$(id -u)" != 0 ]; then
    die 77 "it makes a user and a service, so it must run as root: sudo $0"
  fi
  if [ -n "$UNINSTALL" ]; then uninstall; else install_agent; fi
}

install_agent() {
  [ -f "$PACKAGE/dist/gantry-agent.mjs" ] || die 69 "$PACKAGE/dist is not built. Run: cd $PACKAGE && npm ci"
  [ -n "$ROOT" ] || [ -d /run/systemd/system ] || die 69 'systemd does not run here. By hand: dist/gantry-agent.mjs init --config agent.yaml, then dist/gantry-agent.mjs run --config agent.yaml'
  find_node
  find_gpu
  # Still there where an earlier run was ended between a change and the start with it.
  UNFINISHED=$ROOT$LIB.unfinished
  if [ -e "$UNFINISHED" ]; then CHANGED=1; else CHANGED=''; fi
  make_program
  make_user
  put_file "$(sed "s|/usr/bin/gantry-agent|$PROGRAM|" "$PACKAGE/systemd/$UNIT")" "$UNIT_FILE"
  make_configuration
  start
}

# Its first line names the node that was found, with the flags that keep the agent small: no PATH is needed to start it.
make_program() {
  NEW=$ROOT$LIB.new
  act rm -rf "$NEW"
  act install -d -m 755 "$NEW" "$NEW/scripts" "$NEW/scripts/install" "$ROOT$PREFIX/bin"
  act cp -R "$PACKAGE/dist" "$PACKAGE/systemd" "$PACKAGE/package.json" "$NEW/"
  [ ! -f "$PACKAGE/LICENSE" ] || act cp "$PACKAGE/LICENSE" "$NEW/"
  act cp "$PACKAGE/scripts/install-agent.sh" "$NEW/scripts/"
  act cp "$PACKAGE/scripts/install/runtime-packages.mjs" "$NEW/scripts/install/"
  act "$NODE" "$PACKAGE/scripts/install/runtime-packages.mjs" "$PACKAGE" "$NEW"
  act sed -i "1s|^#!.*node[^ ]* |#!$NODE |" "$NEW/dist/gantry-agent.mjs"
  act chmod -R u=rwX,go=rX "$NEW"
  [ "$(id -u)" != 0 ] || act chown -R 0:0 "$NEW"
  if [ -z "$IS_DRY" ] && [ -d "$ROOT$LIB" ] && diff -r "$NEW" "$ROOT$LIB" > /dev/null 2>&1; then
    say "$LIB has this release already."
    rm -rf "$NEW"
  else
    changed
    act rm -rf "$ROOT$LIB.old"
    [ ! -d "$ROOT$LIB" ] || act mv "$ROOT$LIB" "$ROOT$LIB.old"
    act mv "$NEW" "$ROOT$LIB"
    act rm -rf "$ROOT$LIB.old"
  fi
  [ "$(readlink "$ROOT$PROGRAM" 2> /dev/null)" = "$LIB/dist/gantry-agent.mjs" ] \
    || act ln -sfn "$LIB/dist/gantry-agent.mjs" "$ROOT$PROGRAM"
}

# The user exists once and stays: another uid would not own its cache of a hundred gigabytes.
make_user() {
  put_file "$(cat "$PACKAGE/systemd/gantry.sysusers.conf")" "$SYSUSERS"
  if command -v systemd-sysusers > /dev/null; then
    # By its name, not its path: with another root it is looked for there.
    if [ -n "$ROOT" ]; then act systemd-sysusers --root="$ROOT" gantry.conf; else act systemd-sysusers gantry.conf; fi
    return
  fi
  [ -z "$ROOT" ] || die 69 'without systemd-sysusers there is no user in another root.'
  for group in gantry video render; do
    getent group "$group" > /dev/null || act groupadd --system "$group"
  done
  getent passwd gantry > /dev/null \
    || act useradd --system --gid gantry --home-dir /var/lib/gantry --no-create-home --shell /usr/sbin/nologin gantry
  act usermod --append --groups video,render gantry
}

# Read by the agent, written by root alone: it names what is executed.
make_configuration() {
  act install -d -m 755 "$ROOT/etc/gantry"
  if [ -e "$ROOT$CONFIG" ]; then
    say "$CONFIG is kept as it is."
    # As an earlier run left it that was ended before it gave it to the group: the service cannot read it.
    case $(stat -c '%u:%g %a' "$ROOT$CONFIG") in '0:0 '*[0-7][0-7]0) [ -n "$IS_DRY" ] || give_configuration ;; esac
    [ -z "$LISTEN" ] || say "So --listen changes nothing. To change it: gantry-agent listen $LISTEN"
    return
  fi
  set -- init --config "$ROOT$CONFIG"
  [ -z "$LISTEN" ] || set -- "$@" --listen "$LISTEN"
  [ -z "$YES" ] || set -- "$@" --yes
  if [ -n "$IS_DRY" ]; then
    act "$PROGRAM" "$@"
    return
  fi
  say "+ $PROGRAM $*"
  "$NODE" "$ROOT$LIB/dist/gantry-agent.mjs" "$@"
  give_configuration
}

give_configuration() {
  chmod 640 "$ROOT$CONFIG"
  [ "$(id -u)" != 0 ] || chown "0:$(id_in group)" "$ROOT$CONFIG"
}

start() {
  if [ -n "$ROOT" ]; then
    act systemctl --root="$ROOT" enable "$UNIT"
    act rm -f "$UNFINISHED"
    say "Installed into $ROOT. It starts with that system; then \`gantry-agent invite\` there lets a laptop in."
    return
  fi
  act systemctl daemon-reload
  act systemctl enable --quiet "$UNIT"
  # One that failed too often would not be started again by itself, though what failed may be mended now.
  [ -n "$IS_DRY" ] || systemctl reset-failed "$UNIT" 2> /dev/null || true
  if [ -z "$CHANGED" ] && systemctl is-active --quiet "$UNIT"; then
    say 'It runs, and nothing changed.'
  elif ! act systemctl restart "$UNIT"; then
    systemctl status --no-pager --lines=20 "$UNIT" >&2 || true
    die 1 "the service did not start. Its log: journalctl -u gantry-agent. Then: $PROGRAM doctor"
  fi
  act rm -f "$UNFINISHED"
  say ''
  say 'gantry-agent runs. What it sees:   gantry-agent status'
  say 'What could be better on this host: gantry-agent doctor'
  say 'Who may use it: everybody who gets a line like this one, on the laptop: gantry add LINE'
  act "$PROGRAM" invite || say 'No invite could be made. Later: gantry-agent invite'
}

uninstall() {
  if [ -n "$ROOT" ]; then
    [ ! -e "$ROOT$UNIT_FILE" ] || act systemctl --root="$ROOT" disable "$UNIT"
  elif [ -e "$UNIT_FILE" ]; then
    say 'Running jobs have 30 s to end, model servers 60 s.'
    act systemctl disable --now "$UNIT"
  fi
  act rm -f "$ROOT$UNIT_FILE" "$ROOT$UNIT_FILE.new" "$ROOT$SYSUSERS" "$ROOT$SYSUSERS.new" "$ROOT$PROGRAM"
  act rm -rf "$ROOT$LIB" "$ROOT$LIB.new" "$ROOT$LIB.old" "$ROOT$LIB.unfinished"
  [ -n "$ROOT" ] || act systemctl daemon-reload
  if [ -z "$PURGE" ]; then
    for kept in /etc/gantry "/etc/systemd/system/$UNIT.d" /var/lib/gantry /var/cache/gantry /var/log/gantry; do
      [ ! -e "$ROOT$kept" ] || say "kept: $kept"
    done
    [ -z "$(id_in passwd)" ] || say 'kept: the user gantry'
    say 'To remove them too: install-agent.sh --uninstall --purge'
    return
  fi
  act rm -rf "$ROOT/etc/gantry" "$ROOT/etc/systemd/system/$UNIT.d" "$ROOT/var/lib/gantry" "$ROOT/var/cache/gantry" "$ROOT/var/log/gantry"
  [ -z "$(id_in passwd)" ] || act userdel ${ROOT:+--prefix "$ROOT"} gantry
  # Gone with the user where the system does so.
  [ -z "$(id_in group)" ] || act groupdel ${ROOT:+--prefix "$ROOT"} gantry
}

# systemd's view has no home directories, so a node in one of them cannot be used.
find_node() {
  for candidate in "$NODE" "$(command -v node || true)" /usr/local/bin/node /usr/bin/node /opt/*/bin/node /usr/local/*/bin/node; do
    [ -x "$candidate" ] || continue
    real=$(readlink -f "$candidate")
    case $real in
      /home/* | /root/*)
        say "not used: $real, because the service sees no home directory."
        continue
        ;;
    esac
    version=$("$real" -p process.versions.node 2> /dev/null) || continue
    if at_least "$version"; then
      # The path as given where it is the same program, so that an upgrade of node in its place is followed.
      case $candidate in /home/* | /root/*) NODE=$real ;; *) NODE=$candidate ;; esac
      say "node $version: $NODE"
      return
    fi
    say "not used: $candidate is node $version, and $NODE_FLOOR or later is needed."
  done
  say 'Put a node outside of home directories, for example:'
  say '  curl -fsSLO https://nodejs.org/dist/latest-v24.x/SHASUMS256.txt   # names the archive for your machine, with its checksum'
  say '  tar -xJf node-v24*-linux-*.tar.xz -C /opt'
  die 69 "no node $NODE_FLOOR or later was found that the service could use."
}

at_least() {
  major=${1%%.*}
  rest=${1#*.}
  minor=${rest%%.*}
  [ "$major" -gt "${NODE_FLOOR%.*}" ] || { [ "$major" = "${NODE_FLOOR%.*}" ] && [ "$minor" -ge "${NODE_FLOOR#*.}" ]; }
}

find_gpu() {
  if [ -n "$NO_GPU" ]; then
    say 'Whether there is a GPU was not looked at.'
  elif ! command -v nvidia-smi > /dev/null; then
    die 69 'there is no nvidia-smi here. Install the NVIDIA driver first; or go on without: --no-gpu'
  elif ! gpus=$(timeout -s KILL 30 nvidia-smi -L 2>&1) || [ -z "$gpus" ]; then
    die 69 "nvidia-smi shows no GPU: ${gpus:-no answer}. Mend the driver first; or go on without: --no-gpu"
  else
    say "$gpus"
  fi
}

# $1: passwd or group; nothing where it has no gantry.
id_in() {
  [ ! -f "$ROOT/etc/$1" ] || sed -n 's/^gantry:[^:]*:\([0-9]*\):.*/\1/p' "$ROOT/etc/$1"
}

# $1: the text, $2: where, seen from the new root.
put_file() {
  if [ -f "$ROOT$2" ] && [ "$(cat "$ROOT$2")" = "$1" ]; then return; fi
  changed
  say "+ write $2"
  [ -z "$IS_DRY" ] || return 0
  mkdir -p "$(dirname "$ROOT$2")"
  printf '%s\n' "$1" > "$ROOT$2.new"
  chmod 644 "$ROOT$2.new"
  mv "$ROOT$2.new" "$ROOT$2"
}

# Only a start with it ends the change.
changed() {
  CHANGED=1
  [ -n "$IS_DRY" ] || : > "$UNFINISHED"
}

act() {
  say "+ $*"
  [ -n "$IS_DRY" ] || "$@"
}

absolute() {
  case $1 in
    /*) readlink -m "$1" ;;
    *) readlink -m "$PWD/$1" ;;
  esac
}

say() {
  printf '%s\n' "$*"
}

die() {
  code=$1
  shift
  printf 'install-agent: %s\n' "$*" >&2
  exit "$code"
}

main "$@"
