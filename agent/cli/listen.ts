import { chmod, chown, readFile, stat } from 'node:fs/promises';
import { isMap, parseDocument } from 'yaml';
import { ConfigError } from '../../shared/config-file.ts';
import { writeDurable } from '../../shared/durable-file.ts';
import type { Screen } from './screen.ts';

const WORDS: Readonly<Record<string, string>> = { network: '0.0.0.0', local: '127.0.0.1' };

/**
 * Changes `listen` in agent.yaml and nothing else: comments, order, mode and owner stay. `network` and `local` keep the
 * port. `check` reads the file as the agent would, before it is in place.
 */
export async function setListen(
  where: string,
  { path, check, write }: Pick<Screen, 'write'> & { path: string; check: (listen: string) => Promise<unknown> },
): Promise<void> {
  const document = parseDocument(await readFile(path, 'utf8'));
  if (document.errors.length > 0 || (document.contents !== null && !isMap(document.contents))) {
    throw new ConfigError([`${path}: it is no valid configuration. See \`gantry-agent config check\`.`]);
  }
  const before = document.get('listen');
  const port = /:(\d+)$/.exec(typeof before === 'string' ? before : '')?.[1] ?? '7801';
  const address = WORDS[where];
  const listen = address === undefined ? where : `${address}:${port}`;
  await check(listen);
  if (before === listen) return write(`${path} says so already: ${listen}.\n`);
  document.set('listen', listen);
  const { mode, uid, gid } = await stat(path);
  await writeDurable(path, document.toString());
  await chmod(path, mode & 0o777);
  if (process.getuid?.() === 0) await chown(path, uid, gid);
  write(
    `${path}: listen: ${listen}. It takes effect when the agent starts again (as a service):\n    sudo systemctl restart gantry-agent\n`,
  );
}
