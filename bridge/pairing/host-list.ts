import { constants } from 'node:fs';
import { access, readFile, realpath } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Document } from 'yaml';
import { isMap, isScalar, isSeq, parseDocument } from 'yaml';
import { pause } from '../../shared/abort.ts';
import { ConfigError } from '../../shared/config-file.ts';
import { makeDirectory, writeDurable } from '../../shared/durable-file.ts';
import { AppError, errorCode } from '../../shared/errors.ts';
import { BatchLock } from '../fleet/batch-lock.ts';

export type NewHost = { name: string; url: string; token: string; certificate: string | undefined };

const LOCK_TRIES = 100;
const LOCK_EVERY_MS = 100;

/**
 * Adds a host at the end of `hosts` in bridge.yaml, which is made where there is none. Its name gets a number where another
 * command took it in the meantime: the code is used by now. Returns the name.
 */
export async function addHost(path: string, host: NewHost): Promise<string> {
  let name = host.name;
  await change(path, (document) => {
    const { certificate, ...rest } = host;
    const hosts = document.get('hosts');
    name = freeName(host.name, isSeq(hosts) ? hosts.items.map((item) => (isMap(item) ? item.get('name') : '')) : []);
    const entry = document.createNode({ ...rest, name, ...(certificate !== undefined && { certificate }) });
    const text: unknown = entry.get('certificate', true);
    if (isScalar(text)) text.type = 'BLOCK_LITERAL';
    if (isSeq(hosts)) {
      hosts.flow = false;
      hosts.add(entry);
    } else document.set('hosts', document.createNode([entry]));
  });
  return name;
}

function freeName(base: string, taken: readonly unknown[]): string {
  for (let number = 1; ; number += 1) {
    const name = number === 1 ? base : `${base.slice(0, 58)}-${number}`;
    if (!taken.includes(name)) return name;
  }
}

/** Takes a host out of bridge.yaml; false where there is none of that name. */
export async function removeHost(path: string, name: string): Promise<boolean> {
  let isFound = false;
  await change(path, (document) => {
    const hosts = document.get('hosts');
    if (!isSeq(hosts)) return;
    const at = hosts.items.findIndex((item) => isMap(item) && item.get('name') === name);
    if (at < 0) return;
    isFound = true;
    hosts.delete(at);
  });
  return isFound;
}

/** Rejects where a host could not be added: before an invite is used, which works once. */
export async function checkHostList(path: string): Promise<void> {
  try {
    await change(path, undefined);
  } catch (error) {
    if (error instanceof AppError || error instanceof ConfigError) throw error;
    const why = errorCode(error) ?? String(error);
    throw new AppError(
      'SAVE_FAILED',
      `${path} cannot be written (${why}), so nothing was asked of the host: the invite is still good. Name another file with --config.`,
      { cause: error },
    );
  }
}

/**
 * Reads, changes and replaces the file, while no other command does. What the change does not touch stays as it was
 * written, comments and order included. It holds tokens, so it is 0600; a link to it stays a link.
 */
async function change(path: string, edit: ((document: Document) => void) | undefined): Promise<void> {
  await makeDirectory(dirname(path), { mode: 0o700 });
  await using _lock = await lockOf(dirname(path));
  const target = await realpath(path).catch(() => path); // there is none yet
  const text = await readFile(target, 'utf8').catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return undefined;
    throw error;
  });
  const document = parseDocument(text ?? '');
  const isEmpty = document.contents === null || (isScalar(document.contents) && document.contents.value === null);
  if (document.errors.length > 0 || (!isEmpty && !isMap(document.contents))) {
    throw new ConfigError([
      `${path}: it is no valid configuration, so nothing was changed. See \`gantry config check\`.`,
    ]);
  }
  if (edit === undefined) return await access(dirname(target), constants.W_OK);
  if (isEmpty) document.contents = null; // a file that says only `null` is as good as an empty one
  edit(document);
  // Where there was nothing to change there is nothing to write either: an empty document is written as `null`.
  if (document.contents === null) return;
  const next = document.toString({ lineWidth: 0 });
  if (next !== text) await writeDurable(target, next);
}

async function lockOf(directory: string): Promise<AsyncDisposable> {
  for (let tries = 1; ; tries += 1) {
    const lock = await BatchLock.acquire(directory, { pid: process.pid, client: 'gantry add' });
    if (lock instanceof BatchLock) return lock;
    if (tries === LOCK_TRIES) {
      throw new AppError(
        'SAVE_FAILED',
        `Another command (pid ${lock.pid}) is changing bridge.yaml. Try again when it has ended.`,
      );
    }
    await pause(LOCK_EVERY_MS, new AbortController().signal);
  }
}
