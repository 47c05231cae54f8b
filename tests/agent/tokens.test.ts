import { execa } from 'execa';
import { lstat, mkdtemp, readdir, readFile, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { TokenStore } from '../../agent/tokens.ts';

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'gantry-tokens-'));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

const file = (): string => join(stateDir, 'tokens.json');

test('a token is known by its text, which is written nowhere', async () => {
  await using store = new TokenStore({ stateDir });
  const text = await store.add({ name: 'laptop', role: 'operator' });
  expect(text).toMatch(/^gantry_[\w-]{43}$/);
  expect(await store.check(text)).toMatchObject({ role: 'operator' });
  expect(await readFile(file(), 'utf8')).not.toContain(text.slice('gantry_'.length));
  expect((await stat(file())).mode & 0o777).toBe(0o600);
});

test.each(['', 'x', 'gantry_', 'gantry_' + 'A'.repeat(43), 'y'.repeat(100_000), '\u0000'])(
  'the text %j is no token, and no throw',
  async (text) => {
    await using store = new TokenStore({ stateDir });
    await store.add({ name: 'laptop', role: 'operator' });
    expect(await store.check(text)).toBeUndefined();
  },
);

test('a token made or revoked by another process counts at the next look', async () => {
  await using daemon = new TokenStore({ stateDir });
  expect(await daemon.check('gantry_x')).toBeUndefined();
  await using command = new TokenStore({ stateDir });
  const text = await command.add({ name: 'laptop', role: 'viewer' });
  const token = await daemon.check(text);
  expect(token).toMatchObject({ role: 'viewer' });
  await command.revoke('laptop');
  await daemon.refresh();
  expect(token && daemon.isValid(token)).toBe(false);
  expect(await daemon.check(text)).toBeUndefined();
});

test('the last use is noted without losing what a command changed meanwhile', async () => {
  await using daemon = new TokenStore({ stateDir });
  const text = await daemon.add({ name: 'laptop', role: 'operator' });
  await using command = new TokenStore({ stateDir });
  await Promise.all([
    daemon.check(text),
    command.add({ name: 'desk', role: 'viewer' }),
    command.add({ name: 'phone', role: 'viewer' }),
  ]);
  await daemon[Symbol.asyncDispose]();
  const list = await command.list();
  expect(list.map(({ name }) => name).sort()).toEqual(['desk', 'laptop', 'phone']);
  expect(list.find(({ name }) => name === 'laptop')?.lastUsedAt).toMatch(/^20\d\d-/);
});

test('a change that a dead process left half done is in nobody’s way', async () => {
  const ended = execa('node', ['--version']);
  await ended;
  await writeFile(`${file()}.lock`, String(ended.pid));
  await writeFile(`${file()}.new`, '{"tok');
  await using store = new TokenStore({ stateDir });
  await store.add({ name: 'laptop', role: 'operator' });
  expect(await store.list()).toHaveLength(1);
  expect(await readdir(stateDir)).toEqual(['tokens.json']);
});

// The directory is the agent's user's, and so every engine's, and `sudo gantry-agent tokens add` writes in it as root.
test('a link in its way is not followed', async () => {
  const victim = join(stateDir, 'precious');
  await writeFile(victim, 'precious');
  await symlink(victim, `${file()}.new`);
  await using store = new TokenStore({ stateDir });
  await store.add({ name: 'laptop', role: 'operator' });
  expect(await readFile(victim, 'utf8')).toBe('precious');
  expect((await lstat(file())).isFile()).toBe(true);
});

test('an old lock holds nothing, whoever has it', async () => {
  await writeFile(`${file()}.lock`, '');
  await utimes(`${file()}.lock`, 1, 1);
  await using store = new TokenStore({ stateDir });
  await store.add({ name: 'laptop', role: 'operator' });
  expect(await readdir(stateDir)).toEqual(['tokens.json']);
});

test.each([
  ['a name that is taken', 'laptop', 'There is already a token named laptop.'],
  ['a name with a line break', 'a\nb', 'is not a name'],
  ['an empty name', '', 'is not a name'],
])('%s is refused and nothing changes', async (_, name, message) => {
  await using store = new TokenStore({ stateDir });
  await store.add({ name: 'laptop', role: 'operator' });
  await expect(store.add({ name, role: 'viewer' })).rejects.toThrow(message);
  expect(await store.list()).toHaveLength(1);
});

test('revoking an unknown name says which there are', async () => {
  await using store = new TokenStore({ stateDir });
  await store.add({ name: 'laptop', role: 'operator' });
  await expect(store.revoke('laptpo')).rejects.toThrow('There is no token named laptpo. Known: laptop.');
});

test('a daemon hears of a token that a command revoked', async () => {
  const revoked: string[] = [];
  await using daemon = new TokenStore({ stateDir, onRevoked: (tokenId) => revoked.push(tokenId) });
  await using command = new TokenStore({ stateDir });
  const token = await daemon.check(await command.add({ name: 'laptop', role: 'operator' }));
  await command.add({ name: 'desk', role: 'operator' });
  await command.revoke('laptop');
  await daemon.refresh();
  expect(revoked).toEqual([token?.id]);
});

test('a token that was revoked while another one is used is noticed, whichever reads the file first', async () => {
  const revoked: string[] = [];
  await using daemon = new TokenStore({ stateDir, onRevoked: (tokenId) => revoked.push(tokenId) });
  await using command = new TokenStore({ stateDir });
  await command.add({ name: 'phone', role: 'operator' });
  const laptop = await command.add({ name: 'laptop', role: 'operator' });
  const phone = (await daemon.list()).find(({ name }) => name === 'phone');
  // The daemon is about to note the use of one when the other is revoked: it finds that out as it writes.
  await writeFile(`${file()}.lock`, String(process.pid));
  await daemon.check(laptop);
  const { tokens } = JSON.parse(await readFile(file(), 'utf8')) as { tokens: { name: string }[] };
  await writeFile(file(), JSON.stringify({ tokens: tokens.filter(({ name }) => name !== 'phone') }));
  await rm(`${file()}.lock`);
  await daemon[Symbol.asyncDispose]();
  await daemon.refresh();
  expect(revoked).toEqual([phone?.id]);
});

test.each<[string, (text: string) => string]>([
  ['cut short', (text) => text.slice(0, -40)],
  ['with a bad byte', (text) => text.replace('"tokens"', '"tok\u0000ns"')],
])('a file %s is moved aside, and the tokens that are left in it go on', async (_, damage) => {
  const made = new TokenStore({ stateDir });
  const text = await made.add({ name: 'laptop', role: 'operator' });
  await made.add({ name: 'desk', role: 'viewer' });
  await made[Symbol.asyncDispose]();
  await writeFile(file(), damage(await readFile(file(), 'utf8')));

  await using daemon = new TokenStore({ stateDir });
  expect(await daemon.check(text)).toMatchObject({ role: 'operator' });
  await using command = new TokenStore({ stateDir });
  expect((await command.list()).map(({ name }) => name)).toContain('laptop');
  expect((await readdir(stateDir)).filter((name) => name.startsWith('tokens.json.corrupt-'))).toHaveLength(1);
});

test('a file that is damaged while the daemon runs revokes nobody', async () => {
  const revoked: string[] = [];
  await using daemon = new TokenStore({ stateDir, onRevoked: (id) => revoked.push(id) });
  const text = await daemon.add({ name: 'laptop', role: 'operator' });
  await writeFile(file(), 'garbage');
  expect(await daemon.check(text)).toMatchObject({ role: 'operator' });
  expect(revoked).toEqual([]);
  await using command = new TokenStore({ stateDir });
  expect((await command.list()).map(({ name }) => name)).toEqual(['laptop']);
});
