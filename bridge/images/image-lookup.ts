/** An image that was made here, where it is now. */
export type FoundImage = { id: string; path: string; sha256: string };

/** Finds images that were made here. */
export type ImageLookup = {
  /** By its id, which is that of its job. Undefined where no finished image has it, or its file is gone. */
  find: (id: string) => Promise<FoundImage | undefined>;
};
