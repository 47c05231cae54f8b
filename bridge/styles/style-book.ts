import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { link, lstat, open, readdir, rename, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDirectory, syncDirectory, writeDurable } from '../../shared/durable-file.ts';
import { AppError, errorCode } from '../../shared/errors.ts';
import { nearest } from '../../shared/nearest.ts';
import { NO_LINKS, renameIfFree } from '../output/image-file.ts';
import type { Style } from './style-text.ts';
import { checkHead, checkStyleName, isStyleName, MAX_STYLE_BYTES, parseStyle, styleText } from './style-text.ts';

export type NamedStyle = Style & { name: string; text: string; problem: string | undefined };

/** Where replaced and deleted styles are kept, and how many. */
const OLD = '.replaced';
const MOST_OLD = 100;
const MOST_STYLES = 500;

/**
 * The user's style briefs: one markdown file each, in one directory that he may edit by hand. Only regular files there
 * count, so that no name and no link leads outside. What is replaced or deleted is kept beside them.
 */
export class StyleBook {
  readonly directory: string;
  /** Writes of this process, one after the other; of two processes the later one wins, and both keep what they replaced. */
  #writing: Promise<unknown> = Promise.resolve();

  constructor(directory: string) {
    this.directory = directory;
  }

  /** All of them by name. */
  async list(): Promise<NamedStyle[]> {
    const names = (await this.#names()).slice(0, MOST_STYLES);
    return (await Promise.all(names.map((name) => this.#read(name)))).filter((style) => style !== undefined);
  }

  /** Rejects where there is none, with the name that was probably meant. */
  async get(name: string): Promise<NamedStyle> {
    const style = isStyleName(name) ? await this.#read(name) : undefined;
    if (style !== undefined) return style;
    const names = await this.#names();
    const near = nearest(name, names);
    const hint = near === undefined ? '' : ` Did you mean ${near}?`;
    const known =
      names.length === 0 ? 'No style is saved yet; save_style saves one.' : `Styles: ${names.slice(0, 50).join(', ')}.`;
    throw new AppError('INVALID_ARGUMENT', `No style is named ${JSON.stringify(name.slice(0, 100))}.${hint} ${known}`);
  }

  /** On the disk when this resolves. `replaced` is where the one that had the name is kept. */
  save(name: string, style: Style, o: { overwrite: boolean }): Promise<{ path: string; replaced: string | undefined }> {
    checkStyleName(name);
    checkHead(style.head);
    const text = styleText(style);
    const bytes = Buffer.byteLength(text);
    if (bytes > MAX_STYLE_BYTES)
      throw new AppError(
        'INVALID_ARGUMENT',
        `The style has ${bytes} bytes and ${MAX_STYLE_BYTES} is the most. Shorten it.`,
      );
    return this.#inTurn(() => this.#save(name, text, o));
  }

  /** Resolves to where it is kept. */
  delete(name: string): Promise<string> {
    return this.#inTurn(async () => {
      await this.get(name);
      const kept = await this.#oldPath(name);
      await rename(this.#path(name), kept);
      await syncDirectory(this.directory);
      await this.#dropOldest();
      return kept;
    });
  }

  async #save(name: string, text: string, o: { overwrite: boolean }) {
    const path = this.#path(name);
    await makeDirectory(this.directory, { mode: 0o700 });
    const names = await this.#names();
    if (names.length >= MOST_STYLES && !names.includes(name))
      throw new AppError(
        'INVALID_ARGUMENT',
        `There are ${MOST_STYLES} styles already. Delete one with delete_style first.`,
      );
    const replaced = o.overwrite ? await this.#keepOld(name) : undefined;
    if (o.overwrite) await writeDurable(path, text);
    else if (!(await this.#create(path, text))) {
      throw new AppError(
        'INVALID_ARGUMENT',
        `A style named ${name} exists already. Choose another name, or set overwrite: true; the old one is kept aside then.`,
      );
    }
    await this.#dropOldest();
    return { path, replaced };
  }

  /** False where the name is taken: of two who create it at once one is told so. */
  async #create(path: string, text: string): Promise<boolean> {
    const part = `${path}.${randomBytes(6).toString('hex')}.part`;
    await writeDurable(part, text);
    try {
      await link(part, path);
    } catch (error) {
      const code = errorCode(error) ?? '';
      if (NO_LINKS.has(code)) return renameIfFree(part, path);
      if (code === 'EEXIST') return false;
      throw error;
    } finally {
      await unlink(part).catch(() => undefined); // it has its name by now
    }
    await syncDirectory(this.directory);
    return true;
  }

  async #keepOld(name: string): Promise<string | undefined> {
    const old = await this.#readText(name);
    if (old === undefined) return undefined;
    const kept = await this.#oldPath(name);
    await writeDurable(kept, old);
    return kept;
  }

  async #oldPath(name: string): Promise<string> {
    const directory = join(this.directory, OLD);
    await makeDirectory(directory, { mode: 0o700 });
    return join(directory, `${Date.now()}-${randomBytes(3).toString('hex')}-${name}.md`);
  }

  async #dropOldest(): Promise<void> {
    const directory = join(this.directory, OLD);
    const names = (await readdir(directory).catch((): string[] => [])).sort(); // nothing was ever replaced
    for (const name of names.slice(0, Math.max(0, names.length - MOST_OLD)))
      await rm(join(directory, name), { force: true });
  }

  async #names(): Promise<string[]> {
    const files = await readdir(this.directory, { withFileTypes: true }).catch(() => []); // none was ever saved
    return files
      .filter((file) => file.isFile() && file.name.endsWith('.md'))
      .map((file) => file.name.slice(0, -'.md'.length))
      .filter(isStyleName)
      .sort();
  }

  async #read(name: string): Promise<NamedStyle | undefined> {
    const text = await this.#readText(name);
    return text === undefined ? undefined : { name, text, ...parseStyle(text) };
  }

  /** Undefined where there is none, and where what has the name is a link, no file, or far too large. */
  async #readText(name: string): Promise<string | undefined> {
    const path = this.#path(name);
    if ((await lstat(path).catch(() => undefined))?.isFile() !== true) return undefined;
    const file = await open(path, constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0)).catch(() => undefined); // gone meanwhile
    if (file === undefined) return undefined;
    try {
      const { size } = await file.stat();
      return size > 4 * MAX_STYLE_BYTES ? undefined : await file.readFile('utf8');
    } finally {
      await file.close();
    }
  }

  #path(name: string): string {
    return join(this.directory, `${name}.md`);
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#writing.then(work);
    this.#writing = done.catch(() => undefined); // its caller sees the failure
    return done;
  }
}
