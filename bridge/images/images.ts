import type { ImageEntry } from './image-entry.ts';
import { ImageIndex } from './image-index.ts';
import type { Recent, Wanted } from './image-index.ts';
import { locate } from './located.ts';
import type { Located } from './located.ts';
import { Renderer } from './renderer.ts';

/** An image that was made here, where it is now. */
export type FoundImage = { id: string; path: string; sha256: string };

/** A picture that an edit started from. Its id, where it was made here. */
export type Parent = { sha256: string; path: string; id: string | undefined };

/** What tools and resources know of the images that were made here. It holds nothing that must be closed. */
export type Images = {
  /** By its id, which is that of its job. Undefined where no finished image has it, or its file is gone. */
  find: (id: string) => Promise<FoundImage | undefined>;
  entry: (id: string) => Promise<ImageEntry | undefined>;
  /** What is known of an image with these bytes, wherever they are now; rather of the one saved at `path`. */
  entryOfBytes: (sha256: string, path: string) => Promise<ImageEntry | undefined>;
  recent: (wanted: Wanted) => Promise<Recent>;
  locate: (entry: ImageEntry) => Promise<Located>;
  parentsOf: (entry: ImageEntry) => Promise<Parent[]>;
  render: Renderer['render'];
};

export type ImagesOptions = {
  stateDir: string;
  /** Where else than beside its old place a moved image is looked for. */
  directories?: () => Promise<readonly string[]>;
  renderer?: Renderer;
};

export function createImages({ stateDir, directories, renderer = new Renderer() }: ImagesOptions): Images {
  const index = new ImageIndex(stateDir);
  const locateEntry = async (entry: ImageEntry): Promise<Located> => locate(entry, (await directories?.()) ?? []);
  return {
    find: async (id) => {
      const entry = await index.find(id);
      if (entry === undefined) return undefined;
      const found = await locateEntry(entry);
      return found.kind === 'missing' ? undefined : { id, path: found.path, sha256: entry.result.sha256 };
    },
    entry: (id) => index.find(id),
    entryOfBytes: (sha256, path) => index.findBytes(sha256, path),
    recent: (wanted) => index.recent(wanted),
    locate: locateEntry,
    parentsOf: (entry) => parentsOf(entry, index),
    render: (picture, o) => renderer.render(picture, o),
  };
}

/** By what the edit was told, where that is all of them, and else by their bytes. */
async function parentsOf({ inputs, request }: ImageEntry, index: ImageIndex): Promise<Parent[]> {
  const told = request.kind === 'edit' ? (request.parents ?? []) : [];
  return Promise.all(
    inputs.map(async ({ sha256, path }, place) => {
      const id = told.length === inputs.length ? told[place] : (await index.findBytes(sha256, path))?.id;
      return { sha256, path, id };
    }),
  );
}
