import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { lockPath } from '../../bridge/fleet/batch-lock.ts';
import { oddPath } from '../../bridge/output/odd-path.ts';
import { placesFor } from '../../bridge/places.ts';
import { socketPath } from '../../shared/agent-socket.ts';
import { whileHeld } from '../../shared/held-files.ts';

const UNIX = ['linux', 'darwin'] as const;

describe('where the bridge keeps what', () => {
  test.each(UNIX)('%s: the XDG directories', (platform) => {
    const env = { XDG_CONFIG_HOME: '/c', XDG_STATE_HOME: '/s', XDG_DATA_HOME: '/d', APPDATA: 'C:\\x' };
    expect(placesFor(platform, { home: '/home/me', env })).toEqual({
      configFile: '/c/gantry/bridge.yaml',
      stateDir: '/s/gantry',
      stylesDir: '/d/gantry/styles',
    });
  });

  test.each(UNIX)('%s: their defaults, also where a variable is set to nothing', (platform) => {
    expect(placesFor(platform, { home: '/Users/me', env: { XDG_CONFIG_HOME: '' } })).toEqual({
      configFile: '/Users/me/.config/gantry/bridge.yaml',
      stateDir: '/Users/me/.local/state/gantry',
      stylesDir: '/Users/me/.local/share/gantry/styles',
    });
  });

  test('Windows: the home, and never %APPDATA% or XDG', () => {
    const env = { APPDATA: 'C:\\Users\\me\\AppData\\Roaming', XDG_STATE_HOME: '/s' };
    expect(placesFor('win32', { home: 'C:\\Users\\me', env })).toEqual({
      configFile: 'C:\\Users\\me\\.gantry\\bridge.yaml',
      stateDir: 'C:\\Users\\me\\.gantry\\state',
      stylesDir: 'C:\\Users\\me\\.gantry\\styles',
    });
  });
});

describe.each([
  ['of a batch', lockPath],
  ['of an agent', socketPath],
])('the lock %s', (_, pathOf) => {
  test.each(UNIX)('%s: a socket that the system can bind', (platform) => {
    const path = pathOf('/home/me/.local/state/gantry/x', platform);
    expect(path.startsWith('/')).toBe(true);
    expect(Buffer.byteLength(path)).toBeLessThanOrEqual(103);
  });

  test('Windows: a named pipe, another one for each directory', () => {
    const path = pathOf('C:\\Users\\me\\.gantry\\state\\x', 'win32');
    expect(path).toMatch(/^\\\\\.\\pipe\\gantry-[a-z]+-[0-9a-f]{16,20}$/);
    expect(pathOf('C:\\Users\\me\\.gantry\\state\\x', 'win32')).toBe(path);
    expect(pathOf('C:\\Users\\me\\.gantry\\state\\y', 'win32')).not.toBe(path);
  });
});

test('a batch whose directory is too deep for a socket has its lock elsewhere, still short', () => {
  const path = lockPath(join('/', 'x'.repeat(200)), 'darwin');
  expect(Buffer.byteLength(path)).toBeLessThanOrEqual(103);
});

describe('paths that are refused', () => {
  test.each([
    ['CON', /name of a device/],
    ['out/nul.png', /name of a device/],
    ['out\\COM1', /name of a device/],
    ['lpt\u00b9.txt', /name of a device/],
    ['\\\\server\\share\\a.png', /network and device paths/],
    ['//server/share/a.png', /network and device paths/],
    ['\\\\?\\C:\\a.png', /network and device paths/],
    ['\\\\.\\pipe\\x', /network and device paths/],
    ['file:///etc/passwd', /URLs/],
  ])('%s, on every system', (path, why) => {
    for (const platform of ['linux', 'darwin', 'win32']) expect(oddPath(path, platform)).toMatch(why);
  });

  test.each([
    ['C:\\Users\\me\\AppData.\\x.png', /drops the dots and spaces/],
    ['C:\\Users\\me\\AppData \\x.png', /drops the dots and spaces/],
    ['pictures/fox.png.', /drops the dots and spaces/],
    ['C:\\Users\\me\\a.png:hidden', /hidden stream/],
    ['a.png:hidden', /hidden stream|URLs/],
    ['C:a.png', /drive letter without a slash/],
  ])('%s, on Windows', (path, why) => {
    expect(oddPath(path, 'win32')).toMatch(why);
  });

  test.each(['C:\\Users\\me\\fox.png', 'C:/Users/me/fox.png', '..\\out\\.\\fox.png', 'a fox.png'])(
    'but not %s',
    (path) => {
      expect(oddPath(path, 'win32')).toBeUndefined();
    },
  );

  test('and elsewhere a dot at the end is a name like another', () => {
    expect(oddPath('/home/me/etc./fox.png', 'linux')).toBeUndefined();
  });
});

describe('a file that somebody has open for a moment', () => {
  function heldFor(times: number, code: string): { work: () => Promise<string>; tries: () => number } {
    let tries = 0;
    const work = async (): Promise<string> => {
      tries += 1;
      if (tries <= times) throw Object.assign(new Error('held'), { code });
      return 'done';
    };
    return { work, tries: () => tries };
  }

  test.each(['EPERM', 'EBUSY', 'EACCES'])('Windows: %s is tried again', async (code) => {
    const { work, tries } = heldFor(2, code);
    expect(await whileHeld(work, 'win32')).toBe('done');
    expect(tries()).toBe(3);
  });

  test('Windows: not for ever', async () => {
    const { work, tries } = heldFor(Infinity, 'EBUSY');
    await expect(whileHeld(work, 'win32')).rejects.toThrow('held');
    expect(tries()).toBe(6);
  });

  test.each(UNIX)('%s: the same code is an answer', async (platform) => {
    const { work, tries } = heldFor(1, 'EPERM');
    await expect(whileHeld(work, platform)).rejects.toThrow('held');
    expect(tries()).toBe(1);
  });

  test('Windows: another code is an answer', async () => {
    const { work, tries } = heldFor(1, 'ENOENT');
    await expect(whileHeld(work, 'win32')).rejects.toThrow('held');
    expect(tries()).toBe(1);
  });
});
