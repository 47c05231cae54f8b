/** In the place of packages that no history needs: sharp, pino, systeminformation. */
export const sharp = undefined;
export const pino = undefined;
export { sharp as default };
