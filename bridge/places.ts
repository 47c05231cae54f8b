import { posix, win32 } from 'node:path';

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Where the bridge keeps what. The XDG directories, on macOS as well. On Windows a directory in the home: a packaged client
 * is shown another %APPDATA% than a terminal, and the two must see the same files.
 */
export function placesFor(
  platform: NodeJS.Platform,
  { home, env }: { home: string; env: Environment },
): { configFile: string; stateDir: string; stylesDir: string } {
  if (platform === 'win32') {
    const own = win32.join(home, '.gantry');
    const stylesDir = win32.join(own, 'styles');
    return { configFile: win32.join(own, 'bridge.yaml'), stateDir: win32.join(own, 'state'), stylesDir };
  }
  return {
    configFile: posix.join(env['XDG_CONFIG_HOME'] || posix.join(home, '.config'), 'gantry', 'bridge.yaml'),
    stateDir: posix.join(env['XDG_STATE_HOME'] || posix.join(home, '.local', 'state'), 'gantry'),
    stylesDir: posix.join(env['XDG_DATA_HOME'] || posix.join(home, '.local', 'share'), 'gantry', 'styles'),
  };
}
