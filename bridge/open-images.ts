import type { BridgeConfig } from './config.ts';
import type { Images } from './images/images.ts';
import { createImages } from './images/images.ts';
import { findRoots, outputDirectory } from './output/roots.ts';

/** The images that were made on this machine. Needs no host, so it opens no link. */
export function openImages({ home, cwd, roots: configured, outputDir, stateDir }: BridgeConfig): Images {
  return createImages({
    stateDir,
    directories: async () => {
      const roots = await findRoots({ home, cwd, configured, outputDir, offered: [] });
      // A directory that is not allowed is refused when something is saved there; nothing is looked for in it.
      return outputDirectory({ asked: undefined, configured: outputDir, roots }).then(
        (directory) => [directory],
        () => [],
      );
    },
  });
}
