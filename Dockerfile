# JupyterLab with the tour open, for a look without installing anything else:
#   docker build -t classimpression . && docker run --rm -p 127.0.0.1:8888:8888 classimpression
# and open the address that it prints.
FROM python:3.11-slim
RUN useradd --create-home reader && install -d -o reader -g reader /home/reader/classimpression
WORKDIR /home/reader/classimpression
COPY --chown=reader . .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt '.[notebooks]'
USER reader
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--LabApp.default_url=/lab/tree/nbs/index.ipynb"]
